"""The score of a game of ten-pin bowling."""


def score(rolls):
    """Return the score of a complete game, given the pins knocked down by each roll."""
    total = 0
    roll = 0
    for _ in range(10):
        if rolls[roll] == 10:
            total += 10 + rolls[roll + 1] + rolls[roll + 2]
            roll += 2
        elif rolls[roll] + rolls[roll + 1] == 10:
            total += 10 + rolls[roll + 2]
            roll += 2
        else:
            total += rolls[roll] + rolls[roll + 1]
            roll += 2
    return total
