"""Judging answers: metrics, confidence intervals, gates and the report. Knows no model library."""
