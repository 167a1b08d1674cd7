"""Six posteriors against reference draws and exact moments.

    python -m examples.posteriors --data FOLDER

FOLDER holds `posteriordb/` and `inference_gym/`; without it the posteriors whose data are in
`examples/data` run.
"""
