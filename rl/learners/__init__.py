"""How it learns: each learner is one dataclass whose fields are its flags."""
