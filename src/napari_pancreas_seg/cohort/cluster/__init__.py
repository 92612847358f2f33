"""A cohort on a Dask cluster."""
