"""Machinery of the lessons: figures, sliders, exercises, running notebooks. See the map in `course_utils`."""
