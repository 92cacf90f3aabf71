"""Chapter 8: segmentation. Which class is each pixel (semantic), which object (instance), and both (panoptic)."""
