"""Evaluation of exported models: host, ARM emulation, browser, phone, Mac; bit flips, mAP, latency, the report."""
