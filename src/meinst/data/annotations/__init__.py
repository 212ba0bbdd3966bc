"""Parse and check the entries of annotation files; :mod:`meinst.data.coco` puts them together."""
