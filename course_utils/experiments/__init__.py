"""Machinery for many trainings: grids, studies, their results and reports. See the map in `course_utils`."""
