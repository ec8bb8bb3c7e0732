"""Finite groups acting on inputs: how equivariant a function is, and layers that are so by construction."""

from weightspace.equivariance.equivariance import Defect as Defect
from weightspace.equivariance.equivariance import equivariance_defect as equivariance_defect
from weightspace.equivariance.equivariance import invariance_defect as invariance_defect
from weightspace.equivariance.equivariance import invariant as invariant
from weightspace.equivariance.equivariance import reynolds as reynolds
from weightspace.equivariance.equivariance import reynolds_defect as reynolds_defect
from weightspace.equivariance.finite_group import FiniteGroup as FiniteGroup
from weightspace.equivariance.finite_group import Matrices as Matrices
from weightspace.equivariance.layers import GroupConv as GroupConv
from weightspace.equivariance.layers import GroupPool as GroupPool
