"""Data sets of any common layout, found by pointing at a folder and read as they are.

Read ``layouts.py`` first: it lists the layouts and how each is recognised. Every layout has a
module that finds the parts of a data set (training, validation, test) and reads them;
``assemble.py`` checks what was read and builds the same arrays as COCO's reader.
"""
