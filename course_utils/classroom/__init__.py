"""Machinery of the lessons. In reading order:

figures      drawing: data in, axes out; one palette, colours and markers of groups
images       bytes of pictures: small PNG, lossless WebP
widgets      explore(): sliders above a picture
frames       all positions of a slider as files, and the markup that shows them
pages/       what a browser needs: scripts and styles
pictures/    the pictures with sliders, a file for each notebook
exercises/   the exercises: goals, checks, solutions, wrong answers, a file for each notebook
notebooks    execute notebooks and keep their outputs
"""
