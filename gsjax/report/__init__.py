"""The job `report`: tables and figures of runs and sweeps, on one page."""
