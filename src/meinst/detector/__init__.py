"""The network, its losses, and the selection of detections."""
