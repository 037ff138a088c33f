import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # threads that wait sleep: spinning ones are many times slower beside any other program
__version__ = "0.1.0"
