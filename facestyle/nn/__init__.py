"""What more than one family's networks are built of, judged by and stepped with.

Knows neither families nor pictures' files.
"""
