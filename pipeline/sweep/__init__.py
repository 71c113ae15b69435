"""The tuning of a recipe by many trials. Nothing else imports optuna."""
