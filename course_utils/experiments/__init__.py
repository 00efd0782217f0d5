"""Machinery for many trainings. In reading order:

grid         run_grid(): one function over all combinations of settings and seeds
studies      named experiments that compare METHODS (Study): data, network, budget, and one training of them
study_data   which data a study has, how they are cut, and the fingerprints that name them
large        the studies of photographs that stay on disk: Tiny-ImageNet, ImageNet-LT, Places-LT, iNaturalist 2018
photo_cells  features of a pretrained backbone for the photographs of a folder, and what their cells say besides
photographs  before and after a study of them: which backbone, how long, what is nearly the same, a model to keep
tables       named experiments of other kinds that lessons show (Table); each has a room of its own:
             ldam_rivals, orders, best_epoch, two_classes
runs         run a study or a table in a folder, stopped and taken up at any moment; read it back
background   one run in a folder: its lock, lowest priority, start and stop
progress     how far a run is, and the time left
reports      tables and figures of finished experiments
published    numbers of papers beside ours
command      `python -m course_utils experiments list | run | status | stop | report`
cells        results computed once and kept, a small JSON file each
workers      calls side by side: processes here, or a Dask cluster
"""
