"""``python -m slrfast.info``: what this installation can do on this machine."""

from slrfast.train.info import main

if __name__ == "__main__":
    main()
