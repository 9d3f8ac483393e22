"""``python -m clipmill``, which is how ``torchrun -m clipmill`` starts each rank."""

from clipmill.cli import main

if __name__ == "__main__":
    main()
