"""DICOM: series, DICOM-SEG and what they need."""
