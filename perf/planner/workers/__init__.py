"""Who runs the plans that are judged: this process, or others by way of Dask, on this machine or elsewhere."""
