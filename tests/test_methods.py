import pytest

from ltlearn import UserError
from ltlearn.callbacks import SAMN
from ltlearn.data.samplers import SAMPLERS
from ltlearn.methods import METHODS, find_method


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_complete(name):
    method = find_method(name)
    assert method is METHODS[name]
    assert method.label and method.source and method.stage in (1, 2)
    assert method.sampler in SAMPLERS
    first, second = method.callbacks(), method.callbacks()
    assert not {id(cb) for cb in first} & {id(cb) for cb in second}, "callbacks hold state"


def test_samn_is_samn():
    assert [type(cb) for cb in find_method("samn").callbacks()] == [SAMN]


def test_unknown_methods():
    with pytest.raises(UserError, match="there is no method 'sanm'; did you mean samn?"):
        find_method("sanm")
    with pytest.raises(UserError, match="there is no method 'zzz'; there is ce, samn"):
        find_method("zzz")
