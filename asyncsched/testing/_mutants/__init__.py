"""Stores that each break one rule of the contract, one module for each topic."""
