"""python -m bertune"""

from bertune.cli import main

if __name__ == "__main__":
    main()
