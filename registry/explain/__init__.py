"""Explainers: exact ones for trees and linear models, sampling for anything else."""
