"""Exact gradients through training, by the weight of every example at every step"""
