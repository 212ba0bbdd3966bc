"""Images, annotations, training samples and COCO metrics."""
