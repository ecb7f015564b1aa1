"""Pictures of explanations as SVG, for pages, reports, mails and notebooks; knows no HTTP."""
