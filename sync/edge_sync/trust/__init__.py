"""Who may tell a device what: TUF roles, assignments beside them, and the hub's attested time.

``repository`` signs on the hub, ``trusted`` verifies on the device; neither touches a socket or a
table. Roles and their order follow the TUF specification 1.0 (theupdateframework.io); assignments
and attested time follow the idea of Uptane's Director and time server.
"""
