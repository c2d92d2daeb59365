"""What a check has found, for assertions."""


def worst(check, environment):
    """The diagnosis of a check that is not ok; there is one."""
    (found,) = (each for each in check(environment) if each.verdict != "ok")
    assert found.remedy
    return found


def is_silent(check, environment):
    return all(each.verdict == "ok" for each in check(environment))
