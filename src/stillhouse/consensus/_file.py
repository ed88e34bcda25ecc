"""What a run keeps of a committee's disagreements is called, and its format: who writes it and who reads it agree here.

Apart from the rest of the room, so that a report is read and written without numpy.
"""

FILE = "disagreements.json"
FORMAT = 1
