"""Explainers: exact ones for trees and linear models, shap's own for anything else."""
