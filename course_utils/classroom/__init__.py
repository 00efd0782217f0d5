"""Machinery of the lessons. In reading order:

figures      drawing: data in, axes out; one palette, colours and markers of groups
widgets      explore(): sliders above a picture
pictures/    the pictures with sliders, a file for each notebook
exercises/   the exercises: goals, checks, solutions, wrong answers, a file for each notebook
notebooks    execute notebooks and keep their outputs
"""
