"""Tasks: labelled examples with a loss, data sets, accuracy, and gradients of the loss in the weights."""

from weightspace.net.inputs import carried as carried
from weightspace.task.classification import accuracy as accuracy
from weightspace.task.classification import classifies as classifies
from weightspace.task.data_files import read as read
from weightspace.task.datasets import cifar10 as cifar10
from weightspace.task.datasets import digits as digits
from weightspace.task.datasets import fashion_mnist as fashion_mnist
from weightspace.task.datasets import mnist as mnist
from weightspace.task.examples import TaskError as TaskError
from weightspace.task.goal import Goal as Goal
from weightspace.task.goal import as_goal as as_goal
from weightspace.task.goal import gradient as gradient
from weightspace.task.goal import not_aliased as not_aliased
from weightspace.task.goal import value_and_gradient as value_and_gradient
from weightspace.task.homotopies import Homotopy as Homotopy
from weightspace.task.homotopies import homotopy as homotopy
from weightspace.task.losses import IGNORED as IGNORED
from weightspace.task.outputs import logits as logits
from weightspace.task.processes import Sharded as Sharded
from weightspace.task.processes import sharded as sharded
from weightspace.task.task import Task as Task
from weightspace.task.texts import next_token as next_token
