"""COMPARE: protocols, methods, peers; every number in the README comes out of here."""
