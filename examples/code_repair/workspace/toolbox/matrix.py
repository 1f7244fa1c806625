"""Matrices as lists of rows."""


def rotate(matrix):
    """Return the matrix turned clockwise by 90 degrees."""
    height, width = len(matrix), len(matrix[0])
    turned = []
    for column in range(width):
        turned.append([matrix[height - row][column] for row in range(height)])
    return turned


def transpose(matrix):
    """Return the matrix with rows and columns swapped."""
    return [list(column) for column in zip(*matrix)]


def trace(matrix):
    """Return the sum of the main diagonal."""
    return sum(matrix[index][index] for index in range(len(matrix)))
