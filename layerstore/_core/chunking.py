def cut(buffer, least, average, most):
    n=len(memoryview(buffer)); return [min(at+average,n) for at in range(0,n,average)]
