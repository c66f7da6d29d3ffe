"""Which methods look and which ones change: the one table that both sockets obey.

The control socket serves every method in it, the read-only socket those of class READ. A method that is not
in the table is served by neither. A test walks the service descriptors and proves that none is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class MethodClass(StrEnum):
    READ = "read"
    CHANGE = "change"


METHODS: Final[Mapping[str, MethodClass]] = MappingProxyType(
    {
        "agent.v1.NodeService.GetStatus": MethodClass.READ,
        "agent.v1.NodeService.GetNode": MethodClass.READ,
        "agent.v1.NodeService.GetConfig": MethodClass.READ,
        "agent.v1.NodeService.RunDoctor": MethodClass.READ,
        "agent.v1.NodeService.SimulateNode": MethodClass.READ,
        "agent.v1.DeviceService.ListDevices": MethodClass.READ,
        "agent.v1.DeviceService.GetDevice": MethodClass.READ,
        "agent.v1.DeviceService.QuarantineDevice": MethodClass.CHANGE,
        "agent.v1.DeviceService.ReleaseDevice": MethodClass.CHANGE,
        "agent.v1.DeploymentService.ApplyDeployment": MethodClass.CHANGE,
        "agent.v1.DeploymentService.GetDeployment": MethodClass.READ,
        "agent.v1.DeploymentService.ListDeployments": MethodClass.READ,
        "agent.v1.DeploymentService.DeleteDeployment": MethodClass.CHANGE,
        # Changes nothing, but opens files that the caller names, with the agent's rights: whoever may only look
        # must not learn from the answer which files exist.
        "agent.v1.DeploymentService.PlanDeployment": MethodClass.CHANGE,
        "agent.v1.DeploymentService.RestartDeployment": MethodClass.CHANGE,
        "agent.v1.DeploymentService.StopDeployment": MethodClass.CHANGE,
        "agent.v1.DeploymentService.StartDeployment": MethodClass.CHANGE,
        "agent.v1.DeploymentService.Watch": MethodClass.READ,
        "agent.v1.InstanceService.ListInstances": MethodClass.READ,
        "agent.v1.InstanceService.GetInstance": MethodClass.READ,
        "agent.v1.InstanceService.StreamLogs": MethodClass.READ,
        "agent.v1.EventService.ListEvents": MethodClass.READ,
        "agent.v1.ArtifactService.ListArtifacts": MethodClass.READ,
        "agent.v1.ArtifactService.PullArtifact": MethodClass.CHANGE,
        "agent.v1.ArtifactService.PinArtifact": MethodClass.CHANGE,
        "agent.v1.ArtifactService.UnpinArtifact": MethodClass.CHANGE,
        "agent.v1.ArtifactService.DeleteArtifact": MethodClass.CHANGE,
        # Without its dry run it removes files.
        "agent.v1.ArtifactService.CollectArtifacts": MethodClass.CHANGE,
        # They open no file that the caller names, and plan with what is shown to those who may look anyway.
        "agent.v1.CatalogService.ListModels": MethodClass.READ,
        "agent.v1.CatalogService.ResolveModel": MethodClass.READ,
        "agent.v1.CatalogService.FitCatalog": MethodClass.READ,
        "agent.v1.LedgerService.ListMeasurements": MethodClass.READ,
        "agent.v1.LedgerService.ImportMeasurements": MethodClass.CHANGE,
    }
)
