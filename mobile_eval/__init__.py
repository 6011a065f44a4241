"""PROVE: run the shipped files where they will run and compare their codes with the real gallery index."""
