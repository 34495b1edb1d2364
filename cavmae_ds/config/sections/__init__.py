"""Every section of a run as a frozen, typed, validated model. Defaults are the official base recipe's.

Sources of the defaults: spec/cav-mae.md 1.1 (model), 1.7 (masks), 1.8 (losses), 3.4 (statistics), 4 (training).
"""
