"""Jobs: pure functions of content keys, run here, in processes or on a cluster."""
