"""Detectors of personal data and secrets: pure functions from one text to where in it what was found."""
