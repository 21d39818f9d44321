"""The files that an evaluation writes: the summary, the table, the plots, the report and the model cards."""
