"""
What nobody would send on purpose: messages, streams and files made by hypothesis, for a server and its readers.

`make fuzz` runs tens of thousands of cases; `make test` some hundreds of each kind.
"""
