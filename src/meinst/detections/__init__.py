"""Compact results: boxes, scores, classes and mask codes; pixels only on request."""

from meinst.detections.detections import Detections as Detections
