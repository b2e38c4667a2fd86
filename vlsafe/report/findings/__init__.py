"""`docs/findings.md`: what two finished sweeps, of the main world and of its control, say of the study's findings.

    python -m vlsafe.report.findings MAIN_SWEEP CONTROL_SWEEP --write docs/findings.md

Every number on the page comes from the sweeps' records or from the constants of `vlsafe.report.claims`.
"""
