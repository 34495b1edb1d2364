"""`cavmae launch`: ranks on one host or many, started, watched from outside and started again."""
