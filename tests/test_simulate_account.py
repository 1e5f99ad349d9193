"""The account of a simulated PBX locks as a real one does, over whichever way the logins come."""

from hashlib import md5

from cdrd.simulate.account import FAILURES_TO_LOCK, LOCK_SECONDS, Account


def test_five_failures_lock_the_account_for_ten_minutes() -> None:
    account = Account("api", "right")
    assert not any(account.admits("api", "wrong", 0.0) for _ in range(FAILURES_TO_LOCK))
    assert not account.admits("api", "right", LOCK_SECONDS - 0.001)
    assert account.admits("api", "right", LOCK_SECONDS)


def test_a_login_in_between_starts_the_count_anew() -> None:
    account = Account("api", "right")
    for _ in range(3):
        assert not any(account.admits("api", "wrong", 0.0) for _ in range(FAILURES_TO_LOCK - 1))
        assert account.admits("api", "right", 0.0)


def test_an_attempt_does_not_lengthen_the_lock() -> None:
    account = Account("api", "right")
    attempts = [*[0.0] * FAILURES_TO_LOCK, LOCK_SECONDS - 1.0]
    assert not any(account.admits("api", "wrong", now) for now in attempts)
    assert account.admits("api", "right", LOCK_SECONDS)


def test_a_hashed_login_is_the_md5_in_lower_case_and_nothing_else() -> None:
    account = Account("api", "right")
    digest = md5(b"right").hexdigest()
    assert account.admits("api", digest, 0.0, hashed=True)
    for wrong in ("right", digest.upper(), ""):
        assert not account.admits("api", wrong, 0.0, hashed=True)
    assert not account.admits("api", digest, 0.0)


def test_both_ways_to_log_in_count_towards_one_lock() -> None:
    account = Account("api", "right")
    for attempt in range(FAILURES_TO_LOCK):
        assert not account.is_locked(0.0)
        assert not account.admits("api", "wrong", 0.0, hashed=attempt % 2 == 0)
    assert account.is_locked(LOCK_SECONDS - 0.001)
    assert not account.is_locked(LOCK_SECONDS)
