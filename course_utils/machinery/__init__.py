"""Behind the lessons: how numbers and files come in, checkpoints, several processes. Imports nothing but `runtime`.

checks                in which form numbers come in: integers, half precision, one number for each class
files                 how the images of each data set are read from disk
picture_files         which pictures a folder or a list names, and how one becomes upright RGB
checkpoints           a training goes on where it stopped, and no other one from its file
distributed           one training in several processes, under torchrun
"""
