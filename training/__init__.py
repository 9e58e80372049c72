"""Pretraining, supervised fine-tuning and DPO: one loop, three objectives, four engines. `python -m training --help`."""
