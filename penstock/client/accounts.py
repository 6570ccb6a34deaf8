"""What a client says of money: budgets, which an operator sets, usage, and what was saved. It must not know how."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import overload

from sqlalchemy import Engine

from penstock.client.tenant_view import TenantView, check_name, used
from penstock.errors import InvalidRequestError
from penstock.money import budgets, ledger, reconciliation
from penstock.money.budgets import Budget, Kept, Period, Unit
from penstock.money.ledger import LedgerTotals
from penstock.money.reconciliation import BilledCall, Complete, Reconciliation
from penstock.money.usage import By, PeriodUsage, UsageLine, is_known
from penstock.similar.questions import SimilarReport
from penstock.similar.questions import report as similar_report
from penstock.tenants import Tenants


class Accounts:
    """The part of a client that concerns money."""

    _engine: Engine
    _tenants: Tenants

    def as_tenant(self, tenant: str) -> TenantView:
        """Give what a tenant's own user may see; raise InvalidRequestError for what is no name of a tenant."""
        return TenantView(self._engine, tenant)

    @overload
    def usage(self, tenant: str, by: None = None) -> list[PeriodUsage]: ...

    @overload
    def usage(self, tenant: str, by: By | str, since: datetime | None = None) -> list[UsageLine]: ...

    def usage(
        self, tenant: str, by: By | str | None = None, since: datetime | None = None
    ) -> list[PeriodUsage] | list[UsageLine]:
        """Say how a tenant stands in the current day and month, or `by` what it has spent; see TenantView.usage."""
        view = self.as_tenant(tenant)
        with view.reading() as connection:
            return used(connection, view.tenant, by, since)

    def check_known(self, tenant: str) -> None:
        """Raise InvalidRequestError for a tenant that has no table in tenants.toml, no job, no budget and no usage."""
        view = self.as_tenant(tenant)
        if tenant in self._tenants.named:
            return
        with view.reading() as connection:
            if not is_known(connection, tenant):
                raise InvalidRequestError(
                    "tenant", f"{tenant!r} has no jobs and no budget, and has spent nothing", "correct the name"
                )

    @overload
    def usage_of_all(self, by: None = None) -> list[PeriodUsage]: ...

    @overload
    def usage_of_all(self, by: By | str, since: datetime | None = None) -> list[UsageLine]: ...

    def usage_of_all(
        self, by: By | str | None = None, since: datetime | None = None
    ) -> list[PeriodUsage] | list[UsageLine]:
        """Say the same of every tenant, for an operator: no tenant may see it."""
        with self._engine.connect() as connection:
            return used(connection, None, by, since)

    def reconcile(
        self, lines: Iterable[BilledCall], complete: Complete | None = None, *, dry_run: bool = False
    ) -> Reconciliation:
        """Correct the ledger by what a provider says it billed, or say what would be; all of it, or nothing."""
        with self._engine.connect() as connection, connection.begin() as transaction:
            outcome = reconciliation.reconcile(connection, lines, complete)
            if dry_run:
                transaction.rollback()
        return outcome

    def similar(self, tenant: str | None = None) -> SimilarReport:
        """Say how often an answer was given again to an instruction that means the same, or would have been."""
        if tenant is not None:
            check_name("tenant", tenant)
        with self._engine.connect() as connection:
            return similar_report(connection, tenant)

    def ledger_totals(self) -> LedgerTotals:
        """Sum the ledger over all tenants."""
        with self._engine.connect() as connection:
            return ledger.totals(connection)

    def set_budget(self, budget: Budget, *, kept: Collection[Kept] = ()) -> Budget:
        """Set a budget, or change it, and give what it is now; it holds from the next call on.

        `kept` names what stays as it is in one that exists: `soft_limit`, `hard_limit`, `on_exhausted`. Raises
        InvalidRequestError.
        """
        _check_owner(budget.tenant, budget.project)
        with self._engine.begin() as connection:
            return budgets.set_budget(connection, budget, kept=kept)

    def remove_budget(self, tenant: str, period: Period, unit: Unit, project: str = "") -> bool:
        """Remove a budget, which leaves any amount, and tell whether there was one. Raises InvalidRequestError."""
        _check_owner(tenant, project)
        with self._engine.begin() as connection:
            return budgets.remove_budget(connection, tenant, project, period, unit)

    def budgets(self, tenant: str | None = None) -> list[Budget]:
        """List the budgets of a tenant, or of all; raise InvalidRequestError for what is no name of a tenant."""
        if tenant is not None:
            check_name("tenant", tenant)
        with self._engine.connect() as connection:
            return budgets.list_budgets(connection, tenant)


def _check_owner(tenant: str, project: str) -> None:
    check_name("tenant", tenant)
    if project:
        check_name("project", project)
