"""`signalbus demo`: a month of flights through real processes, one of them killed, and an account of every signal.

Uses the public names of signalbus, and `Bus.broker` for looking and tidying up.
"""
